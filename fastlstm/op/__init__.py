"""The sequence op: its schema, its gradients, its transforms."""
