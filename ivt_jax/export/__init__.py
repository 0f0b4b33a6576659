"""What a trained model is given away as: the forms that others load."""
