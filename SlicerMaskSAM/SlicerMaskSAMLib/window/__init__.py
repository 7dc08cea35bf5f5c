"""The panel and its widgets, with Qt."""
