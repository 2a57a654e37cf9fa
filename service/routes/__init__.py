"""One module per family of endpoints; each route is a door, not a room."""
