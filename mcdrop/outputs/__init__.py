"""What outputs mean: tasks, the numbers of a prediction, and how good they are."""
