"""What tasks start from besides photos: the files of boxes and of tracks that other tools made."""
