"""A run: options, selection of annotations, plan, inference, commit, summary."""
