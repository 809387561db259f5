"""The HTTP front end: takes jobs, shows how they stand, serves what they made. Imports no torch, runs no job."""
