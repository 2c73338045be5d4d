/* labbench: small measurements that are the same binary in every node and on the host.
 * Each prints one JSON object.  Times come from CLOCK_MONOTONIC (clock_gettime(2)). */
#ifndef LABBENCH_H
#define LABBENCH_H

#include <stddef.h>
#include <stdint.h>

double now(void);                                      /* seconds */
double number(int argc, char **argv, int at, double otherwise);
void fail(const char *what) __attribute__((noreturn)); /* with errno's text, exit code 1 */
void per_operation(double ops, double seconds);        /* prints ops, seconds, ns_per_op, ops_per_second */
void keep(uint64_t value);                             /* a result that the compiler must not drop */

/* kernel.c */
int do_syscall(int argc, char **argv);
int do_fork(int argc, char **argv);
int do_context(int argc, char **argv);
int do_pipe(int argc, char **argv);
int do_signal(int argc, char **argv);
int do_fault(int argc, char **argv);
int do_mmap(int argc, char **argv);
int do_thread(int argc, char **argv);
/* compute.c */
int do_spin(int argc, char **argv);
int do_triad(int argc, char **argv);
int do_chase(int argc, char **argv);
int do_lu(int argc, char **argv);
/* net.c */
int do_serve(int argc, char **argv);
int do_rr(int argc, char **argv);
int do_connect(int argc, char **argv);
/* load.c */
int do_timed(int argc, char **argv);
int do_text(int argc, char **argv);
int do_write(int argc, char **argv);
int do_burn(int argc, char **argv);
int do_fill(int argc, char **argv);
int do_forks(int argc, char **argv);

#endif
