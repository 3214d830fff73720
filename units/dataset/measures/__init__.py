"""What is measured of a unit set: cost, phones, speakers, and what perturbations change."""
