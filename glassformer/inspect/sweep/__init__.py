"""One edit after another over all heads or layers."""
