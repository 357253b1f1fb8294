"""What writes the documentation's pages about models and their figures, from numbers alone."""
