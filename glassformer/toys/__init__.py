"""Small generated worlds whose right answers are known, and the model that ships with the package."""
