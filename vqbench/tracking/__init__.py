"""Everything that talks to MLflow. May import `planning`, `reports` and what they may."""
