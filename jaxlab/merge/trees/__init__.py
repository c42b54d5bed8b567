"""How an operation on numbers becomes one on trees, and what keeps trees apart."""
