"""Views as pictures without a browser: what is drawn is data, which a terminal and a PNG draw each in its own way."""
