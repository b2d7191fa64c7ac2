"""The only room that talks to a person: results on stdout, progress and hints on stderr."""
