package loader

// The C sources are the only definition of what kernel and daemon share:
// bpf2go turns their types into Go's. Debian's multiarch headers are named for
// the machine that generates; the object is the same on all.

//go:generate sh -c "go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package loader -type layout -type limits -type service_flags -type fragment_key -type fragments_way -type fragmented -type rule_key -type rule -type flow_key -type pin -type forward -type outcome -type entry -type slot_bits -type slot_state -type nat_state -type nat_flags -type nat_event -type nat_record -type nat_queue -type flow_note -type told_table -type interface -type vip -type service -type backend -type port_table -type next_hop -type way -type fence_key -type fence -type fence_held -type fence_flags -type nat_flow -type trace_found lb ../bpf/lb.c -- -O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(gcc -dumpmachine)"
//go:generate sh -c "go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package loader -output-suffix _test bench ../bpf/bench.c -- -O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(gcc -dumpmachine)"
//go:generate sh -c "go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package loader -type limits -type outcome decap ../bpf/decap.c -- -O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(gcc -dumpmachine)"
//go:generate sh -c "go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -go-package loader -output-suffix _test live ../bpf/live.c -- -O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(gcc -dumpmachine)"
