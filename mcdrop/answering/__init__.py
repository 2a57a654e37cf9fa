"""From a captured network to answers: runs, what advances them, and what a prediction is asked for."""
