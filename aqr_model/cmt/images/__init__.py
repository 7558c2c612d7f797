"""What is special to CMT's image branch: the VoVNet backbone, the neck, GridMask."""
