"""The coordinator: enrolment, rounds, and the Flower app that drives them."""
