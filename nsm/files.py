"""Names of the files in a run's folder, for those who read them without loading PyTorch."""

HISTORY, RESULTS = "training_history.json", "final_results.json"
PROGRESS = "progress.json"
