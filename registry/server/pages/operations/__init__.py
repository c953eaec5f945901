"""The pages for operators: serving nodes, jobs and campaigns, the audit log, and the state of the server."""
