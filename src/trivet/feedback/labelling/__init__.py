"""The labelling app: a web page on which a team ranks completions, its API and its client."""
