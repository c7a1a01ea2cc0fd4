"""A hospital: its data folder, its local training, and the Flower app that answers the coordinator."""
