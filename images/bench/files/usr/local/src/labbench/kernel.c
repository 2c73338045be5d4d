/* What a crossing into the kernel costs.  Each loop looks at the clock once in a batch, so that the
 * clock's own cost (large where the clock is emulated) does not count. */
#define _GNU_SOURCE
#include "labbench.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPEAT(batch, body)                                             \
    double limit_ = number(argc, argv, 1, 1.0), began_ = now(), took_;  \
    double ops_ = 0;                                                    \
    do {                                                                \
        for (int i_ = 0; i_ < (batch); i_++) {                          \
            body;                                                       \
        }                                                               \
        ops_ += (batch);                                                \
        took_ = now() - began_;                                         \
    } while (took_ < limit_);                                           \
    per_operation(ops_, took_);                                         \
    return 0

int do_syscall(int argc, char **argv)
{
    REPEAT(1000, syscall(SYS_getppid));
}

static void one_process(void)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        execl("/proc/self/exe", "labbench", "nothing", (char *)NULL);
        _exit(127);
    }
    int status;
    if (waitpid(child, &status, 0) < 0 || status) {
        fprintf(stderr, "labbench: the child could not execute /proc/self/exe\n");
        exit(1);
    }
}

int do_fork(int argc, char **argv)
{
    REPEAT(10, one_process());
}

static int to_child[2], to_parent[2];

static void partner(int argc, char **argv, int one_cpu)
{
    if (one_cpu) {
        cpu_set_t allowed, mine;
        if (sched_getaffinity(0, sizeof allowed, &allowed))
            fail("sched_getaffinity");
        int cpu = 0;
        while (!CPU_ISSET(cpu, &allowed))
            cpu++;
        CPU_ZERO(&mine);
        CPU_SET(cpu, &mine);
        if (sched_setaffinity(0, sizeof mine, &mine))
            fail("sched_setaffinity");
    }
    if (pipe(to_child) || pipe(to_parent))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        char byte;
        close(to_child[1]);
        close(to_parent[0]);
        while (read(to_child[0], &byte, 1) == 1 && write(to_parent[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    close(to_child[0]);
    close(to_parent[1]);
    (void)argc;
    (void)argv;
}

static void there_and_back(void)
{
    char byte = 'x';
    if (write(to_child[1], &byte, 1) != 1 || read(to_parent[0], &byte, 1) != 1)
        fail("the other process");
}

/* One switch is half of the way there and back. */
int do_context(int argc, char **argv)
{
    partner(argc, argv, 1);
    double limit = number(argc, argv, 1, 1.0), began = now(), took, ops = 0;
    do {
        for (int i = 0; i < 100; i++)
            there_and_back();
        ops += 200;
        took = now() - began;
    } while (took < limit);
    per_operation(ops, took);
    return 0;
}

int do_pipe(int argc, char **argv)
{
    partner(argc, argv, 0);
    REPEAT(100, there_and_back());
}

static volatile sig_atomic_t caught;

static void catch(int number)
{
    caught += number != 0;
}

int do_signal(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = catch};
    sigaction(SIGUSR1, &action, NULL);
    pid_t me = getpid();
    REPEAT(200, kill(me, SIGUSR1));
}

#define AREA (8u << 20)

static long touched(void)
{
    static long page;
    if (!page)
        page = sysconf(_SC_PAGESIZE);
    char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        fail("mmap");
    madvise(area, AREA, MADV_NOHUGEPAGE); /* one fault a page, whatever the kernel's setting is */
    for (size_t at = 0; at < AREA; at += page)
        area[at] = 1;
    munmap(area, AREA);
    return AREA / page;
}

int do_fault(int argc, char **argv)
{
    double limit = number(argc, argv, 1, 1.0), began = now(), took, ops = 0;
    do {
        ops += touched();
        took = now() - began;
    } while (took < limit);
    per_operation(ops, took);
    return 0;
}

static void mapped(void)
{
    void *area = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED || munmap(area, 65536))
        fail("mmap");
}

int do_mmap(int argc, char **argv)
{
    REPEAT(200, mapped());
}

static void *nothing(void *argument)
{
    return argument;
}

static void one_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, nothing, NULL))
        fail("pthread_create");
    pthread_join(thread, NULL);
}

int do_thread(int argc, char **argv)
{
    REPEAT(50, one_thread());
}
