"""What runs on a serving node: the agent that keeps engines at the desired state, the local store and exports."""
