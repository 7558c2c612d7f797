_base_ = ["./base.py"]
model = dict(pts_bbox_head=dict(enable_aqr=True))
