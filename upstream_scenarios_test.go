package pullthrough_test

// scenarios are whole pulls from upstreams that behave well, badly or oddly.
var scenarios []row
