"""Generated data sets with known answers, and the model that ships with the package."""
