"""Configs as `jaxlab plan` sees them: shapes, compiled steps, compiled merges."""
