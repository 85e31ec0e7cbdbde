"""What is minimized: LightningModules and their networks."""
