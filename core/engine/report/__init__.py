"""What a user reads about a pruned model: `report.json` with everything measured, and the model card."""
