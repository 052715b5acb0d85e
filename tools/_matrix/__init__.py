"""The release matrix: which releases, how each is run, what came out, and the support table made from it."""
