"""`rewardtune doctor`: what a run would stumble over, found before it starts, each with a fix."""
