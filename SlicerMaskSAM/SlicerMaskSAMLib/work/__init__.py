"""The work behind the buttons: no Qt."""
