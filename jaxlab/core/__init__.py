"""What every room stands on: types, mesh, tree, checkpoint, report."""
