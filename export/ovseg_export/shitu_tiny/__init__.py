"""ShiTu-tiny: the small main-body detector and the small embedding network that ovseg trains and ships."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, ImageNet's, on 0..1
