"""nuScenes itself: its tables, the dataset that training reads, the devkit's score."""
