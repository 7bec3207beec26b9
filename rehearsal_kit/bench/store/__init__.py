"""The rehearsal buffer in one process, beside other libraries."""
