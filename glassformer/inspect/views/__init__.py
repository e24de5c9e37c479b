"""Views: what a picture of the glass shows, as plain functions that return frozen data with a receipt."""
