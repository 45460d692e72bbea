"""The step "scar": wide convolutions give way to SCAR blocks where that pays."""
