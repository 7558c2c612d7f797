"""What a training shows to people: values, pictures, sentences about errors."""
