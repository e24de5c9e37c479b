"""Fast implementations of what nn defines, and the choice between them."""
