"""Where images come from: folders, CSV files, the Ultra-FGVC sets."""
