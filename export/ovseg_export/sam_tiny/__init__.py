"""SAM-tiny: the small promptable segmentation model that ovseg trains and ships."""
