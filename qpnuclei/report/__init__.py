"""Pages to look at: the report of a project, and the preview of a run."""
