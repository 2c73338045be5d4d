/* Commands timed, known loads, noisy neighbours, and limits tried out. */
#define _GNU_SOURCE
#include "labbench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds_of(struct timeval time)
{
    return time.tv_sec + time.tv_usec / 1e6;
}

int do_timed(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "labbench: COMMAND is expected\n");
        return 2;
    }
    double began = now();
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        execvp(argv[1], argv + 1);
        fprintf(stderr, "labbench: %s: %s\n", argv[1], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    int status;
    struct rusage used;
    if (wait4(child, &status, 0, &used) < 0)
        fail("wait4");
    double took = now() - began;
    if (status) {
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        fprintf(stderr, "labbench: %s ended with %d\n", argv[1], code);
        return code;
    }
    fflush(stdout);
    printf("\n{\"seconds\": %.6f, \"user\": %.6f, \"system\": %.6f, \"max_rss_kib\": %ld}\n", took,
           seconds_of(used.ru_utime), seconds_of(used.ru_stime), used.ru_maxrss);
    return 0;
}

int do_text(int argc, char **argv)
{
    static const char *const words[] = {"bridge", "kernel", "packet", "memory", "the", "of", "and", "a",
                                        "container", "machine", "page", "to", "processor", "in", "is", "node"};
    double left = number(argc, argv, 1, 8) * (1 << 20);
    uint32_t state = 2463534242u;
    char line[128];
    while (left >= 1) {
        size_t used = 0;
        while (used < 70) {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%u ", words[state % 16], state >> 24 & 7);
        }
        line[used - 1] = '\n';
        size_t size = left < used ? (size_t)left : used;
        if (fwrite(line, 1, size, stdout) != size)
            fail("standard output");
        left -= size;
    }
    return fflush(stdout) ? 1 : 0;
}

/* Blocks of 64 KiB, each at its time: the rate that comes out is the one asked for, unless the disk is slower. */
int do_write(int argc, char **argv)
{
    static char block[65536];
    double rate = number(argc, argv, 2, 4) * (1 << 20), limit = number(argc, argv, 3, 1.0);
    int file = argc > 1 ? open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (file < 0)
        fail(argc > 1 ? argv[1] : "FILE");
    double began = now(), bytes = 0, took;
    do {
        double early = bytes / rate - (now() - began);
        if (early > 0) {
            struct timespec pause = {.tv_sec = (time_t)early, .tv_nsec = (long)((early - (time_t)early) * 1e9)};
            nanosleep(&pause, NULL);
        }
        if (write(file, block, sizeof block) != sizeof block)
            fail("write");
        bytes += sizeof block;
        took = now() - began;
    } while (took < limit);
    close(file);
    printf("{\"mib_per_second\": %.4f, \"bytes\": %.0f, \"seconds\": %.6f}\n", bytes / took / (1 << 20), bytes, took);
    return 0;
}

static void burn_memory(double until)
{
    size_t size = 64u << 20;
    char *area = malloc(2 * size);
    if (!area)
        fail("memory");
    while (now() < until) {
        memcpy(area, area + size, size);
        area[size] = (char)(area[0] + 1);
    }
}

static void burn_disk(double until, const char *path)
{
    static char block[1 << 20];
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        fail(path);
    for (int i = 0; now() < until; i++)
        if (pwrite(file, block, sizeof block, (off_t)(i % 64) << 20) < 0 || fdatasync(file))
            fail(path);
    unlink(path);
}

static void burn_forks(double until)
{
    while (now() < until) {
        pid_t child = fork();
        if (!child) {
            usleep(50000);
            _exit(0);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (child < 0)
            usleep(1000);
    }
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

int do_burn(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";
    double until = now() + number(argc, argv, 2, 1.0);
    if (!strcmp(kind, "memory"))
        burn_memory(until);
    else if (!strcmp(kind, "disk"))
        burn_disk(until, argc > 3 ? argv[3] : "/var/tmp/labbench.burn");
    else if (!strcmp(kind, "forks"))
        burn_forks(until);
    else if (!strcmp(kind, "cpu")) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        pid_t child = 1;
        for (long i = 1; i < cpus && child > 0; i++)
            child = fork();
        for (uint64_t i = 0;; i++)
            if (i % 1000000 == 0 && now() > until)
                break;
        if (!child)
            _exit(0);
        while (waitpid(-1, NULL, 0) > 0)
            ;
    } else {
        fprintf(stderr, "labbench: burn: cpu, memory, disk or forks is expected\n");
        return 2;
    }
    printf("{\"done\": 1}\n");
    return 0;
}

/* In a child, so that somebody is left to tell when the kernel kills it. */
int do_fill(int argc, char **argv)
{
    size_t most = (size_t)number(argc, argv, 1, 64);
    volatile size_t *touched =
        mmap(NULL, sizeof *touched, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (touched == MAP_FAILED)
        fail("mmap");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (score >= 0 && write(score, "1000", 4) < 0)
            _exit(3);
        for (size_t i = 0; i < most; i++) {
            char *area = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (area == MAP_FAILED)
                _exit(4);
            for (size_t at = 0; at < 1 << 20; at += 4096)
                area[at] = (char)(i + 1);
            ++*touched;
        }
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("{\"mib\": %zu, \"killed\": %d, \"refused\": %d}\n", *touched, WIFSIGNALED(status),
           WIFEXITED(status) && WEXITSTATUS(status) == 4);
    return 0;
}

int do_forks(int argc, char **argv)
{
    size_t most = (size_t)number(argc, argv, 1, 64), made = 0;
    pid_t *children = calloc(most, sizeof *children);
    if (!children)
        fail("memory");
    for (; made < most; made++) {
        children[made] = fork();
        if (children[made] < 0)
            break;
        if (!children[made]) {
            pause();
            _exit(0);
        }
    }
    for (size_t i = 0; i < made; i++)
        kill(children[i], SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    printf("{\"processes\": %zu, \"limited\": %d}\n", made, made < most);
    return 0;
}
