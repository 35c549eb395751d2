"""Pictures for people: plots, contact sheets, triptychs."""
