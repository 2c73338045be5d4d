#include "labbench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name;
    int (*run)(int, char **);
    const char *usage;
} tools[] = {
    {"syscall", do_syscall, "[SECONDS]            getppid(2) through syscall(2)"},
    {"fork", do_fork, "[SECONDS]            fork, exec of a program that does nothing, wait"},
    {"context", do_context, "[SECONDS]            a byte back and forth between two processes on one CPU"},
    {"pipe", do_pipe, "[SECONDS]            the same, on any CPUs"},
    {"signal", do_signal, "[SECONDS]            a signal to itself, handled"},
    {"fault", do_fault, "[SECONDS]            first touch of anonymous pages"},
    {"mmap", do_mmap, "[SECONDS]            mmap and munmap of 64 KiB"},
    {"thread", do_thread, "[SECONDS]            pthread_create and join"},
    {"spin", do_spin, "[ITERATIONS]         counted iterations of a chain of integer operations"},
    {"triad", do_triad, "[SECONDS] [MIB]      a[i] = b[i] + q * c[i], as STREAM counts bytes"},
    {"chase", do_chase, "[SECONDS] [MIB]      a random walk through memory, one dependent load a line"},
    {"lu", do_lu, "[N]                  LU factorization with partial pivoting of an N x N matrix"},
    {"serve", do_serve, "PORT                 answer each byte with a byte, until killed"},
    {"rr", do_rr, "HOST PORT [SECONDS]  requests and responses of one byte"},
    {"connect", do_connect, "HOST PORT [SECONDS]  connect, one request, close"},
    {"timed", do_timed, "COMMAND...           time a command"},
    {"text", do_text, "MIB                  a fixed text that compresses, to standard output"},
    {"write", do_write, "FILE MIB_PER_S SECS  write at a fixed rate"},
    {"burn", do_burn, "KIND SECONDS [PATH]  a noisy neighbour: cpu, memory, disk, forks"},
    {"fill", do_fill, "MIB                  touch memory until it is all there, or the process is killed"},
    {"forks", do_forks, "MOST                 processes at one time until there may be no more"},
};

double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

double number(int argc, char **argv, int at, double otherwise)
{
    char *end;
    if (at >= argc)
        return otherwise;
    double value = strtod(argv[at], &end);
    if (*end || !(value > 0)) {
        fprintf(stderr, "labbench: %s is no number above 0\n", argv[at]);
        exit(2);
    }
    return value;
}

void fail(const char *what)
{
    fprintf(stderr, "labbench: %s: %s\n", what, strerror(errno));
    exit(1);
}

void per_operation(double ops, double seconds)
{
    printf("{\"ops\": %.0f, \"seconds\": %.6f, \"ns_per_op\": %.3f, \"ops_per_second\": %.1f}\n", ops, seconds,
           seconds * 1e9 / ops, ops / seconds);
}

void keep(uint64_t value)
{
    __asm__ volatile("" : : "r"(value)); /* GCC's manual, Extended Asm: the value must be there */
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "nothing"))
        return 0;
    for (size_t i = 0; argc > 1 && i < sizeof tools / sizeof *tools; i++)
        if (!strcmp(argv[1], tools[i].name))
            return tools[i].run(argc - 1, argv + 1);
    fprintf(stderr, "usage: labbench TOOL ...\n");
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++)
        fprintf(stderr, "  %-8s %s\n", tools[i].name, tools[i].usage);
    return 2;
}
