"""What many runs say together: found, grouped over seeds, and shown as text, files and a page."""
