"""The panel and its widgets: Qt."""
