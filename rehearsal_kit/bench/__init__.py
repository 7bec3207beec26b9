"""What the rehearsal buffer costs: beside other libraries, between ranks, in whole training steps."""
