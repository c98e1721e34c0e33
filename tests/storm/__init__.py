"""The storm: `make storm`. Real processes under random faults must end with the tables of the calm run."""
